"""How much each owner may use: principals, admission, quotas, retention."""
