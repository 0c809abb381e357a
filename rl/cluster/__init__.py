"""The roles as Ray actors: learner ranks, rollout workers, reward workers."""
