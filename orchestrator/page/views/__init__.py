"""The four views: each asks, and shows; what is shown is worked out by pure modules beside this package."""
