"""Records of Bluesky lexicons as rows of the AppView tables (schema `bsky`). Pure: no database, no clock.

Start with `project.project`. `rows` names tables and columns; `gate_terms` holds the terms of thread and post gates.
The rules between records are SQL (appview/sql/reconcile.sql).
"""
