"""Records of Bluesky's lexicons → rows of the AppView's tables (schema `bsky`). Pure: no database, no clock.

Start with `project.project`; `rows` names tables and columns, `gates` holds the rules between records.
"""
