"""The `com.atproto` reads: from the tables of the repos, of identities and of labels.

Each method is a function (context, query) → JSON that runs in a thread; `routes.py` lists them. `parameters.py` reads the query,
`stored_repos.py` the row of a repo and what may be shown of it. A CAR is rebuilt from rows (`repo_car.py`) and streamed
(`car_responses.py`). docs/serving.md compares each method with the official one.
"""
