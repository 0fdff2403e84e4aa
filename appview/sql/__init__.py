"""The AppView's named statements: `queries("writer")` reads `writer.sql` beside this module (see `schemas.sql`)."""

from functools import partial

from schemas.sql import queries as statements_of

queries = partial(statements_of, package=__name__)
