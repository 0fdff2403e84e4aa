"""Records of Bluesky's lexicons → rows of the AppView's tables (schema `bsky`). Pure: no database, no clock.

Start with `project.project`; `rows` names tables and columns, `gate_terms` what thread and post gates say.
The rules between records are SQL (schemas/sql/appview_fold.sql).
"""
