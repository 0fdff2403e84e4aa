"""Routes of the filter, which selects what is mirrored."""

from control import sharded_filter
from control.api.router import Ctx, Router, documented
from schemas.filter_spec import FilterSpec, FilterState
from steps.gate.filter_edits import FilterEdit, FilterEntries

ROUTER = Router()


@ROUTER.get("")
def get_filters(context: Ctx) -> FilterState:
    """The filter and the state of pruning."""
    with context.db() as db:
        return sharded_filter.show(context.settings, db)


@ROUTER.put("", responses=documented(409, 413, 415))
def set_filters(context: Ctx, body: FilterSpec) -> FilterState:
    """Replace the whole filter."""
    with context.db() as db:
        return sharded_filter.change(context.settings, db, body)


@ROUTER.post("/add", responses=documented(409, 413, 415))
def add_to_filters(context: Ctx, body: FilterEntries) -> FilterState:
    """Add collections or DIDs to the filter. Concurrent edits are applied one after another."""
    with context.db() as db:
        return sharded_filter.change(context.settings, db, FilterEdit("add", body))


@ROUTER.post("/remove", responses=documented(409, 413, 415))
def remove_from_filters(context: Ctx, body: FilterEntries) -> FilterState:
    """Remove collections or DIDs from the filter. Concurrent edits are applied one after another."""
    with context.db() as db:
        return sharded_filter.change(context.settings, db, FilterEdit("remove", body))


@ROUTER.post("/prune")
def prune_filters(context: Ctx) -> FilterState:
    """Remove the rows outside the filter."""
    with context.db() as db:
        return sharded_filter.prune(context.settings, db)
