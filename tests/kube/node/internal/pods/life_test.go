package pods

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"crescendo.dev/kube-node/internal/images"
	"crescendo.dev/kube-node/internal/network"
	"crescendo.dev/kube-node/internal/sandbox"
	"crescendo.dev/kube-node/internal/volumes"
)

// The package starts its own program as the first process of sandboxes and containers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case sandbox.PauseArgument:
			if err := sandbox.RunPause(os.Args[2]); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case sandbox.ContainerArgument:
			sandbox.RunContainer()
		}
	}
	os.Exit(m.Run())
}

var errAbsent = errors.New("absent")

// playedAPI keeps what it is told.
type playedAPI struct {
	volumes.Source
	mu       sync.Mutex
	statuses map[types.UID]corev1.PodStatus
	removed  map[types.UID]bool
	secret   map[string][]byte
}

func (a *playedAPI) SetStatus(_ context.Context, pod *corev1.Pod, status *corev1.PodStatus) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.statuses[pod.UID] = *status.DeepCopy()
	return nil
}

func (a *playedAPI) Remove(_ context.Context, pod *corev1.Pod) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removed[pod.UID] = true
	return nil
}

func (a *playedAPI) IsNotFound(err error) bool { return errors.Is(err, errAbsent) }

func (a *playedAPI) Services(string) ([]*corev1.Service, error) { return nil, nil }

func (a *playedAPI) Secret(string, string) (*corev1.Secret, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.secret == nil {
		return nil, errAbsent
	}
	return &corev1.Secret{Data: a.secret}, nil
}

func (a *playedAPI) status(pod *corev1.Pod) corev1.PodStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.statuses[pod.UID]
}

type nodeFixture struct {
	t       *testing.T
	api     *playedAPI
	manager *Manager
	node    *Node
}

func newNode(t *testing.T) *nodeFixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("pods need root")
	}
	bridge, err := network.OpenBridge("kube-node-pods", netip.MustParsePrefix("10.248.0.0/16"), 0)
	if err != nil {
		t.Fatal(err)
	}
	api := &playedAPI{statuses: map[types.UID]corev1.PodStatus{}, removed: map[types.UID]bool{}}
	node := &Node{
		Name: "n", API: api, Source: api, Images: images.Map{"image": {Path: "/usr/bin"}}, Spawner: sandbox.NewSpawner(), Bridge: bridge,
		Events: record.NewFakeRecorder(1000), Log: slog.New(slog.DiscardHandler), Folder: t.TempDir(), Hidden: []string{"/tmp"},
		Closing: make(chan struct{}), Routes: func() []network.Route { return nil },
	}
	f := &nodeFixture{t, api, NewManager(node), node}
	t.Cleanup(func() {
		close(node.Closing)
		f.manager.Close(time.Second)
		if err := bridge.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func script(name, text string) corev1.Container {
	return corev1.Container{
		Name: name, Image: "image:1", Command: []string{"sh", "-c", text},
		VolumeMounts: []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}},
	}
}

func (f *nodeFixture) pod(policy corev1.RestartPolicy, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod", UID: types.UID(strings.ReplaceAll(f.t.Name(), "/", "-"))},
		Spec: corev1.PodSpec{
			RestartPolicy: policy, Containers: containers, TerminationGracePeriodSeconds: ptr.To(int64(20)),
			Volumes: []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}},
		},
	}
}

func (f *nodeFixture) until(what string, pod *corev1.Pod, holds func(corev1.PodStatus) bool) corev1.PodStatus {
	f.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		status := f.api.status(pod)
		if holds(status) {
			return status
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("not within 30 s: %s: %+v", what, status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func ready(status corev1.PodStatus) bool { return conditionIs(status.Conditions, corev1.PodReady) }

func (f *nodeFixture) log(container string) string {
	f.t.Helper()
	var out strings.Builder
	if err := f.manager.Logs(f.t.Context(), "ns", "pod", container, false, false, ReadOptions{Tail: -1}, &out); err != nil {
		f.t.Fatal(err)
	}
	return out.String()
}

func (f *nodeFixture) delete(pod *corev1.Pod, seconds int64) {
	deleted := pod.DeepCopy()
	deleted.DeletionTimestamp, deleted.DeletionGracePeriodSeconds = ptr.To(metav1.Now()), &seconds
	f.manager.Sync(deleted)
}

func TestAJobsContainersRunInOrderAndItsSidecarEndsLast(t *testing.T) {
	f := newNode(t)
	pod := f.pod(corev1.RestartPolicyNever, script("main", "echo main >> /shared/order; sleep 0.3; echo end >> /shared/order"))
	sidecar := script("sidecar", "trap 'echo stop >> /shared/order; cat /shared/order; exit 0' TERM; echo sidecar >> /shared/order; touch /shared/up; while :; do sleep 0.05; done")
	sidecar.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
	sidecar.StartupProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/shared/up"}}}}
	pod.Spec.InitContainers = []corev1.Container{script("first", "echo first >> /shared/order"), sidecar, script("second", "echo second >> /shared/order")}
	f.manager.Sync(pod)
	status := f.until("the job has ended", pod, func(s corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded })
	if got, want := f.log("sidecar"), "first\nsidecar\nsecond\nmain\nend\nstop\n"; got != want {
		t.Errorf("the order was %q, want %q", got, want)
	}
	if state := status.ContainerStatuses[0].State.Terminated; state == nil || state.ExitCode != 0 || state.Reason != "Completed" {
		t.Errorf("the container is %+v", status.ContainerStatuses[0].State)
	}
	entries, err := os.ReadDir(filepath.Join(f.node.Folder, string(pod.UID)))
	if err != nil || len(entries) != 1 || entries[0].Name() != "containers" {
		t.Errorf("of the pod are left %v, %v: want its logs alone", entries, err)
	}
}

func TestAPodEndsWithinItsGrace(t *testing.T) {
	f := newNode(t)
	polite := script("polite", "trap 'echo asked; exit 0' TERM; while :; do sleep 0.05; done")
	polite.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo hook > /proc/1/fd/1"}}}}
	deaf := script("deaf", "trap '' TERM; while :; do sleep 0.05; done")
	pod := f.pod(corev1.RestartPolicyAlways, polite, deaf)
	f.manager.Sync(pod)
	f.until("it is ready", pod, ready)
	began := time.Now()
	f.delete(pod, 2)
	status := f.until("it has ended", pod, func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	if took := time.Since(began); took < 2*time.Second || took > 6*time.Second {
		t.Errorf("it took %s with a grace of 2 s", took)
	}
	codes := map[string]int32{}
	for _, c := range status.ContainerStatuses {
		codes[c.Name] = c.State.Terminated.ExitCode
	}
	if codes["polite"] != 0 || codes["deaf"] != 137 {
		t.Errorf("exit codes are %v", codes)
	}
	if got := f.log("polite"); got != "hook\nasked\n" {
		t.Errorf("it said %q", got)
	}
	for deadline := time.Now().Add(10 * time.Second); !f.isRemoved(pod); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it was not taken out of the API")
		}
	}
}

func (f *nodeFixture) isRemoved(pod *corev1.Pod) bool {
	f.api.mu.Lock()
	defer f.api.mu.Unlock()
	return f.api.removed[pod.UID]
}

func TestAContainerThatIsNotAliveStartsAgain(t *testing.T) {
	f := newNode(t)
	main := script("main", "echo up; exec sleep 60")
	main.LivenessProbe = &corev1.Probe{
		PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/shared/alive"}}},
		TerminationGracePeriodSeconds: ptr.To(int64(1)),
	}
	main.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: main.LivenessProbe.ProbeHandler}
	pod := f.pod(corev1.RestartPolicyAlways, main)
	f.manager.Sync(pod)
	status := f.until("it started again", pod, func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) == 1 && s.ContainerStatuses[0].RestartCount == 1 && s.ContainerStatuses[0].State.Running != nil
	})
	if last := status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
		t.Errorf("before, it ended with %+v", last)
	}
	if ready(status) {
		t.Error("it is ready though its probe fails")
	}
	if err := f.manager.Exec(t.Context(), "ns", "pod", "main", []string{"touch", "/shared/alive"}, Streams{}); err != nil {
		t.Fatal(err)
	}
	f.until("it is ready", pod, ready)
}

func TestAFailureWaitsLongerEachTime(t *testing.T) {
	f := newNode(t)
	pod := f.pod(corev1.RestartPolicyOnFailure, script("main", "echo no > /dev/termination-log; exit 3"))
	pod.Spec.Containers[0].TerminationMessagePath = "/dev/termination-log"
	f.manager.Sync(pod)
	status := f.until("it waits", pod, func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) == 1 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	last := status.ContainerStatuses[0].LastTerminationState.Terminated
	if status.ContainerStatuses[0].RestartCount != 1 || last == nil || last.ExitCode != 3 || last.Message != "no\n" {
		t.Errorf("after %d restarts: %+v", status.ContainerStatuses[0].RestartCount, last)
	}
}

func TestAPodWaitsForItsSecretAndFollowsIt(t *testing.T) {
	f := newNode(t)
	pod := f.pod(corev1.RestartPolicyAlways, script("main", "while ! grep -q two /secret/key; do sleep 0.1; done; stat -Lc %a:%g /secret/key; exec sleep 60"))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To(int64(10001)), RunAsGroup: ptr.To(int64(10001)), FSGroup: ptr.To(int64(10002))}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "secret", VolumeSource: corev1.VolumeSource{
		Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr.To(int32(0o400))},
	}})
	main := &pod.Spec.Containers[0]
	main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "secret", MountPath: "/secret", ReadOnly: true})
	f.manager.Sync(pod)
	f.until("its sandbox is there", pod, func(s corev1.PodStatus) bool { return s.PodIP != "" })
	set := func(value string) {
		f.api.mu.Lock()
		defer f.api.mu.Unlock()
		f.api.secret = map[string][]byte{"key": []byte(value)}
	}
	set("one")
	f.until("it runs", pod, ready)
	set("two")
	for deadline := time.Now().Add(20 * time.Second); f.log("main") == ""; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new secret did not come")
		}
	}
	if got := f.log("main"); got != "440:10002\n" {
		t.Errorf("the file is %q", got)
	}
}
