// Its definitions are what is wanted of it; no program.
module registrymirror.io/tests/cluster/prometheus-operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
