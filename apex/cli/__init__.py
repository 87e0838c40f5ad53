"""The `apex` command. Each module has the commands that its name says; heavy imports come late."""
