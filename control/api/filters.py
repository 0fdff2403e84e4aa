"""Handlers of the filter."""

from control import filters
from control.api.context import Context
from control.api.route import Nothing
from schemas.filter_spec import FilterSpec, FilterState


def show(context: Context, _asked: Nothing, _body: None) -> FilterState:
    """The filter as it stands."""
    with context.db() as db:
        return filters.show(db)


def change(context: Context, _asked: Nothing, body: FilterSpec) -> FilterState:
    """Set the filter as a whole."""
    with context.db() as db:
        return filters.change(db, body)


def prune(context: Context, _asked: Nothing, _body: None) -> FilterState:
    """Let control remove the rows outside."""
    with context.db() as db:
        return filters.prune(db)
