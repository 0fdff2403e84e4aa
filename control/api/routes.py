"""The table of routes. Order does not matter: no two of them fit one request."""

from control.api import filters, jobs, letters, mirror, models
from control.api.route import Nothing, Route
from schemas.filter_spec import FilterSpec, FilterState
from schemas.job_spec import Job, JobSpec

ROUTES = (
    Route("GET", "/api/status", "What the mirror is doing.", mirror.status, models.Status),
    Route(
        "GET",
        "/api/repos",
        "Repos in a phase; the failed ones unless another is named.",
        mirror.repos,
        models.Repos,
        models.RepoPage,
    ),
    Route("GET", "/api/repos/{did}", "One repo.", mirror.repo, models.Repo, models.Did, errors=(404,)),
    Route(
        "POST",
        "/api/repos/{did}/retry",
        "Fetch a failed repo again.",
        mirror.retry_repo,
        models.Repo,
        models.Did,
        errors=(404, 409),
    ),
    Route("GET", "/api/hosts", "PDSes.", mirror.hosts, models.Hosts, models.HostPage),
    Route("GET", "/api/dead-letters", "Dead letters.", letters.letters, models.Letters, models.LetterPage),
    Route(
        "GET",
        "/api/dead-letters/{id}",
        "A dead letter with its payload.",
        letters.letter,
        models.WholeLetter,
        models.LetterPlace,
        errors=(404,),
    ),
    Route(
        "POST",
        "/api/dead-letters/{id}/retry",
        "Run the code of today over a dead letter.",
        letters.retry,
        models.LetterSettled,
        models.LetterPlace,
        errors=(404, 409),
    ),
    Route(
        "POST",
        "/api/dead-letters/{id}/dismiss",
        "Put a dead letter aside.",
        letters.dismiss,
        models.LetterSettled,
        models.LetterPlace,
        errors=(404, 409),
    ),
    Route(
        "GET", "/api/skipped", "Listing ranges stepped over.", mirror.skipped, models.SkippedRanges, models.SkippedPage
    ),
    Route(
        "POST",
        "/api/skipped/fill",
        "Read skipped ranges again now.",
        mirror.fill,
        models.Filled,
        Nothing,
        models.Fill,
        errors=(409,),
    ),
    Route(
        "POST",
        "/api/backfill",
        "Start a backfill job, or resume the one with the same source.",
        jobs.start,
        jobs.JobOrPlan,
        Nothing,
        JobSpec,
        errors=(409,),
    ),
    Route("GET", "/api/backfill", "Backfill jobs.", jobs.page, models.Jobs, models.JobPage),
    Route("GET", "/api/backfill/{id}", "One backfill job.", jobs.job, Job, models.Id, errors=(404,)),
    *(
        Route("POST", f"/api/backfill/{{id}}/{name}", summary, call, Job, models.Id, errors=(404, 409))
        for name, summary, call in (
            ("pause", "Pause a job.", jobs.pause),
            ("resume", "Resume a job at its checkpoint.", jobs.resume),
            ("cancel", "End a job where it stands.", jobs.cancel),
            ("retry", "Open a failed or cancelled job again.", jobs.retry),
        )
    ),
    Route("GET", "/api/filters", "What of the network is mirrored.", filters.show, FilterState),
    Route(
        "PUT",
        "/api/filters",
        "Set what of the network is mirrored.",
        filters.change,
        FilterState,
        Nothing,
        FilterSpec,
        errors=(409,),
    ),
    Route("POST", "/api/filters/prune", "Remove the rows outside the filter.", filters.prune, FilterState),
)
