"""What the scripts share: nothing here is mathematics."""
