package probes

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestVerdictsTakeTheirThresholdsInARow(t *testing.T) {
	probe := &corev1.Probe{SuccessThreshold: 2, FailureThreshold: 3}
	for _, c := range []struct {
		name    string
		begin   Verdict
		answers string
		want    string
	}{
		{"readiness", Undecided, "+-++", "UUUP"},
		{"readiness lost and won again", Passing, "--+---++", "PPPPPFFP"},
		{"liveness", Passing, "--+---", "PPPPPF"},
		{"startup", Undecided, "---", "UUF"},
	} {
		state, got := NewState(probe, c.begin), ""
		for _, answer := range c.answers {
			verdict, _ := state.Observe(answer == '+')
			got += map[Verdict]string{Undecided: "U", Passing: "P", Failing: "F"}[verdict]
		}
		if got != c.want {
			t.Errorf("%s: %q gives %s, want %s", c.name, c.answers, got, c.want)
		}
	}
}

func TestAChangeIsToldOnce(t *testing.T) {
	state := NewState(&corev1.Probe{FailureThreshold: 1}, Passing)
	if _, changed := state.Observe(false); !changed {
		t.Error("the first failure changed nothing")
	}
	if _, changed := state.Observe(false); changed {
		t.Error("the second failure was told again")
	}
}

func TestHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("ok") == "" || r.Header.Get("X-Probe") != "1" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	target := Target{Address: host, Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: int32(number)}}}
	for path, good := range map[string]bool{"/healthz?ok=1": true, "/healthz": false} {
		action := &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("metrics"), HTTPHeaders: []corev1.HTTPHeader{{Name: "X-Probe", Value: "1"}}}
		err := Ask(context.Background(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: action}}, target)
		if (err == nil) != good {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestHealthOfAServiceByName(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, states := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, states)
	states.SetServingStatus("ready", grpc_health_v1.HealthCheckResponse_SERVING)
	states.SetServingStatus("standby", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go server.Serve(listener)
	defer server.Stop()
	port := int32(listener.Addr().(*net.TCPAddr).Port)
	for name, good := range map[string]bool{"ready": true, "standby": false, "unknown": false} {
		probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port, Service: &name}}}
		if err := Ask(context.Background(), probe, Target{Address: "127.0.0.1"}); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPort(t *testing.T) {
	ports := []corev1.ContainerPort{{Name: "grpc", ContainerPort: 7070}}
	if port, err := Port(intstr.FromString("grpc"), ports); err != nil || port != 7070 {
		t.Error(port, err)
	}
	if _, err := Port(intstr.FromString("none"), ports); err == nil {
		t.Error("a port that is not there was found")
	}
}
