"""What a sandbox may reach through us: model APIs and its git repository. The keys stay on this side."""
