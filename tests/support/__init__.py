"""What several suites of tests share: servers, sessions, tasks, and what stands in for them."""
