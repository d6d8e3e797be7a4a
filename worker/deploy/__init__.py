"""Files for operators: a dashboard for Grafana, alerts for Prometheus, a unit for systemd, a site for nginx."""
