"""Side by side with peers, in one run: ratios with the losses beside them."""
