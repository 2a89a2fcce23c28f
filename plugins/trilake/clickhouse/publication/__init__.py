"""Publication to ClickHouse: write into staging, audit, and switch what readers see, exactly once."""
