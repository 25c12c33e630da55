package pods

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func view(name string, kind Kind, phase Phase, code int) View {
	return View{Name: name, Kind: kind, Phase: phase, Code: code, Started: phase == Active}
}

func TestContainersStartInTheirOrder(t *testing.T) {
	starting := view("proxy", Sidecar, Active, 0)
	starting.Started = false
	for _, c := range []struct {
		name   string
		policy corev1.RestartPolicy
		views  []View
		want   Plan
	}{
		{"the first init container alone", corev1.RestartPolicyAlways,
			[]View{view("a", Init, Waiting, 0), view("b", Init, Waiting, 0), view("m", Main, Waiting, 0)},
			Plan{Start: []string{"a"}}},
		{"nothing while it runs", corev1.RestartPolicyAlways,
			[]View{view("a", Init, Active, 0), view("b", Init, Waiting, 0), view("m", Main, Waiting, 0)}, Plan{}},
		{"the next after its end", corev1.RestartPolicyAlways,
			[]View{view("a", Init, Exited, 0), view("b", Init, Waiting, 0), view("m", Main, Waiting, 0)},
			Plan{Start: []string{"b"}}},
		{"a failed one again", corev1.RestartPolicyOnFailure,
			[]View{view("a", Init, Exited, 1), view("m", Main, Waiting, 0)}, Plan{Start: []string{"a"}}},
		{"a failed one ends a pod that does not restart", corev1.RestartPolicyNever,
			[]View{view("a", Init, Exited, 1), view("m", Main, Waiting, 0)}, Plan{Finished: true, Failed: true}},
		{"a sidecar holds the next up until it has started", corev1.RestartPolicyAlways,
			[]View{starting, view("b", Init, Waiting, 0), view("m", Main, Waiting, 0)}, Plan{}},
		{"and no longer", corev1.RestartPolicyAlways,
			[]View{view("proxy", Sidecar, Active, 0), view("b", Init, Waiting, 0), view("m", Main, Waiting, 0)},
			Plan{Start: []string{"b"}}},
		{"all main containers together", corev1.RestartPolicyAlways,
			[]View{view("proxy", Sidecar, Active, 0), view("b", Init, Exited, 0), view("m", Main, Waiting, 0), view("n", Main, Waiting, 0)},
			Plan{Start: []string{"m", "n"}, Initialized: true}},
		{"a sidecar that ends comes back beside them", corev1.RestartPolicyNever,
			[]View{view("proxy", Sidecar, Exited, 0), view("m", Main, Active, 0)}, Plan{Start: []string{"proxy"}, Initialized: true}},
	} {
		if got := Next(c.policy, c.views, now); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy corev1.RestartPolicy
		code   int
		want   Plan
	}{
		{corev1.RestartPolicyAlways, 0, Plan{Start: []string{"m"}, Initialized: true}},
		{corev1.RestartPolicyAlways, 1, Plan{Start: []string{"m"}, Initialized: true}},
		{corev1.RestartPolicyOnFailure, 0, Plan{Initialized: true, Finished: true}},
		{corev1.RestartPolicyOnFailure, 1, Plan{Start: []string{"m"}, Initialized: true}},
		{corev1.RestartPolicyNever, 0, Plan{Initialized: true, Finished: true}},
		{corev1.RestartPolicyNever, 1, Plan{Initialized: true, Finished: true, Failed: true}},
	} {
		if got := Next(c.policy, []View{view("m", Main, Exited, c.code)}, now); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s after %d: got %+v, want %+v", c.policy, c.code, got, c.want)
		}
	}
}

func TestAPodEndsWithItsLastMainContainer(t *testing.T) {
	views := []View{view("m", Main, Exited, 3), view("n", Main, Active, 0)}
	if got := Next(corev1.RestartPolicyNever, views, now); got.Finished || got.Failed {
		t.Errorf("got %+v while one runs", got)
	}
	views[1] = view("n", Main, Exited, 0)
	if got := Next(corev1.RestartPolicyNever, views, now); !got.Finished || !got.Failed {
		t.Errorf("got %+v after both", got)
	}
}

func TestABackOffIsWaitedFor(t *testing.T) {
	waiting := view("m", Main, Exited, 1)
	waiting.NotBefore = now.Add(10 * time.Second)
	want := Plan{Wake: waiting.NotBefore, Initialized: true}
	if got := Next(corev1.RestartPolicyAlways, []View{waiting}, now); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := Next(corev1.RestartPolicyAlways, []View{waiting}, waiting.NotBefore); len(got.Start) != 1 {
		t.Errorf("got %+v when it was over", got)
	}
}

func TestBackOffDoublesToItsEnd(t *testing.T) {
	var last time.Duration
	for restarts, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute, 5 * time.Minute} {
		if last = BackOff(restarts, time.Second, last); last != want {
			t.Errorf("restart %d waits %s, want %s", restarts, last, want)
		}
	}
	if got := BackOff(5, time.Hour, maxBackOff); got != 0 {
		t.Errorf("after an hour it waits %s", got)
	}
}
