"""Publication to ClickHouse, exactly once: write into staging, audit, and switch."""
