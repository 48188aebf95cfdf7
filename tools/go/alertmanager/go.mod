module mail-token-broker/tools/alertmanager

go 1.26.0

// tools/setup builds it in its own module, which has the sums of its dependencies.
require github.com/prometheus/alertmanager v0.35.0
