"""What happens when inputs, disks or processes fail."""
