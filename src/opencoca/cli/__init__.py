"""The `coca` command: one thin file per subcommand, dispatched by `main`."""
