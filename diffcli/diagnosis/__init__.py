"""What `diffcli diagnose` asks of a trained model: checks that hold for every score, each a number with its error."""
