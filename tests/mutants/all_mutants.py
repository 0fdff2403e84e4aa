"""All mutants, by subject."""

from tests.mutants.of_accounts import ACCOUNTS, RATCHETS
from tests.mutants.of_batches import BATCHES, FILTERS
from tests.mutants.of_claims import CLAIMS, LISTINGS
from tests.mutants.of_events import CREATES, IN_BACKFILL, IN_SYNC, OUTCOMES, SEEN

MUTANTS = (
    *SEEN,
    *IN_SYNC,
    *IN_BACKFILL,
    *CREATES,
    *OUTCOMES,
    *ACCOUNTS,
    *RATCHETS,
    *BATCHES,
    *FILTERS,
    *CLAIMS,
    *LISTINGS,
)
