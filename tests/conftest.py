"""One plugin per concern: the servers, the network and the faults that tests are made of."""

pytest_plugins = ["fix_log", "fix_database", "fix_simulator", "fix_proxy", "fix_official", "fix_mirror", "fix_flow"]
