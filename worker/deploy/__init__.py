"""Files for operators: a dashboard, alerts, service units, proxies."""
