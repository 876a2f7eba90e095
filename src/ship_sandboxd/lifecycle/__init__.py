"""The life of a sandbox: made, handed out warm, paused, resumed, snapshotted, forked, found again, ended."""
