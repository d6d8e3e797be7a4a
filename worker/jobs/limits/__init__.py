"""Who may have how much: principals, admission, quotas, retention."""
