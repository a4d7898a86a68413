"""What `diffcli explain` shows of a process, its data and its scores; `diffcli train` takes its warnings from here."""
