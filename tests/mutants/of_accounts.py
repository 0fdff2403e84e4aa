"""Mutants of what #account and #identity do, and of the ratchet that orders them."""

from tests.mutants.changes import always, never, removed, replaced, without
from tests.mutants.mutant import mutant

GATE = "steps.gate.transitions:"
RATCHET = "steps.gate.ratchet:"

ACCOUNTS = (
    mutant(
        "a relay that no longer follows an account hides it",
        replaced(GATE + "on_account", "is_served(event.active, event.status)", "event.active"),
    ),
    mutant(
        "an inactive account's backfill continues",
        replaced(
            GATE + "on_account",
            "return Transition(ended, (DropBuffered(),) if repo.phase == Phase.BACKFILL else ())",
            "return Transition(hidden)",
        ),
    ),
    mutant("a deletion is not confirmed", never(GATE + "on_account", "event.status in LEFT_BEHIND")),
    mutant("reactivation is forgotten", always(GATE + "on_account", "reopened"), account=4),
    mutant("an inactive repo waits for another reason", never(GATE + "_pending", "repo.active")),
    mutant(
        "a status that hides is kept beside an active account",
        always("protocol.account_status:status_beside", "NOT_FOLLOWED"),
        account=6,
    ),
    mutant(
        "an account event that another relay has brought is a duplicate",
        replaced(
            "tests.model.model_relays:content",
            "return None",
            "return (event.did, event.time, event.active) if isinstance(event, wire.AccountEvent) else None",
        ),
        relays=2,
        skewed=True,
        clock=6,
        account=6,
        takedown=6,
        lagging=True,
    ),
    mutant(
        "a time ahead of its receipt is believed",
        removed("tests.model.model_state:State.receive", "min(event.time, now)"),
        relays=1,
        skewed=True,
        clock=6,
        takedown=6,
        restart=4,
        account=4,
    ),
)

RATCHETS = (
    mutant("a ratchet is not adopted where it is newer", without(RATCHET + "adopted", "time > repo.account_time")),
    mutant("the ratchet is not adopted", never(GATE + "on_outcome", "opened is not repo")),
    mutant("the ratchet is lowered by an outcome", never(RATCHET + "adopted", "newer"), account=5, again=5),
    mutant("account events have no ratchet", never(RATCHET + "advanced", "more.seqs.get(source, -1)")),
    mutant(
        "within a relay time decides",
        without(RATCHET + "advanced", "source != relay"),
        skewed=True,
        clock=6,
        account=6,
        relays=1,
        restart=0,
    ),
    mutant(
        "between relays seq decides",
        replaced(RATCHET + "advanced", "time <= newest", "seq <= repo.account_seq"),
        relays=2,
        account=6,
    ),
    mutant(
        "between relays the last that comes wins",
        never(RATCHET + "advanced", "time <= newest"),
        relays=2,
        account=6,
        takedown=4,
        lagging=True,
    ),
    mutant(
        "a restarted sequence is the old one",
        never(RATCHET + "source_of", "event.epoch"),
        restart=3,
        account=6,
        skewed=False,
    ),
    mutant(
        "an identity makes older account events of other relays old",
        replaced(RATCHET + "advanced", "more.last.get(kind, (here, highest))", "(here, highest)"),
        relays=2,
        lagging=True,
        takedown=6,
        identity=9,
        account=0,
        skewed=False,
        loss=0.0,
    ),
    mutant(
        "what was seen of other relays is forgotten",
        never(RATCHET + "advanced", "here not in ('', source)"),
        relays=2,
        skewed=True,
        clock=6,
        account=6,
        reread=6,
    ),
)
