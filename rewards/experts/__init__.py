"""Vision experts: published models behind `rewards.expert.Expert`, one family a file."""
