"""What Prometheus is told of sessions; ``docs/operations.md`` lists them."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter("ship_events", "Events appended to the logs.", ["type"])
events = cache(EVENTS.labels)
"""The counter of one type."""
COMMIT_SECONDS = Histogram(
    "ship_commit_seconds",
    "From a decision to its being on disk.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
RUNNER_LINKS = Gauge("ship_runner_links", "Links of runners that are open on this node.")
FOLLOWERS = Gauge("ship_followers", "Streams of sessions that are open now.")
EFFECTS = Counter(
    "ship_effects", "Effects carried out, by how they ended: done, retried, given_up.", ["kind", "outcome"]
)
TOKENS = Counter(
    "ship_model_tokens", "Tokens that models read and wrote.", ["provider", "model", "direction"]
)
COST_DOLLARS = Counter(
    "ship_model_cost_dollars", "What model calls cost, by the prices in the settings.", ["provider", "model"]
)
