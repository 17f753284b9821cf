"""What this data says to the paper's claims, one question a file."""
