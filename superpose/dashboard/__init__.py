"""Pages that show what an SAE has found: records, and the HTML that draws them."""
