package sandbox

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"crescendo.dev/kube-node/internal/volumes"
)

// The package starts its own program as the first process of sandboxes and containers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case PauseArgument:
			if err := RunPause(os.Args[2]); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case ContainerArgument:
			RunContainer()
		}
	}
	os.Exit(m.Run())
}

type fixture struct {
	t       *testing.T
	spawner *Spawner
	pause   *Pause
	folder  string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	f := &fixture{t: t, spawner: NewSpawner(), folder: t.TempDir()}
	pause, err := f.spawner.StartPause(t.Context(), "pod-0", false)
	if err != nil {
		t.Fatal(err)
	}
	f.pause = pause
	t.Cleanup(pause.Stop)
	return f
}

func (f *fixture) spec(script string) *Container {
	return &Container{
		Root: filepath.Join(f.folder, "root"), Sandbox: f.pause.PID, Hidden: []string{"/tmp", "/run"}, ReadOnly: true,
		Command: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "A=b"},
		User: User{ID: 10001, Group: 10001, Groups: []int{10002}, NoNewPrivileges: true},
	}
}

// sleeping is a container that waits until the test ends.
func (f *fixture) sleeping(t *testing.T) *Process {
	t.Helper()
	process, err := f.spawner.StartContainer(context.Background(), f.spec("exec sleep 60"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Signal(unix.SIGKILL); err != nil {
			t.Error(err)
		}
		process.Exit()
	})
	return process
}

func (f *fixture) run(spec *Container) (string, Exit) {
	f.t.Helper()
	var out bytes.Buffer
	process, err := f.spawner.StartContainer(context.Background(), spec, &out, &out)
	if err != nil {
		f.t.Fatal(err)
	}
	exit := process.Exit()
	return out.String(), exit
}

func TestAContainersView(t *testing.T) {
	f := newFixture(t)
	data := filepath.Join(f.folder, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "file"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ script, want string }{
		"user and groups":       {"id -u; id -g; id -G", "10001\n10001\n10001 10002\n"},
		"name":                  {"hostname; echo $A", "pod-0\nb\n"},
		"its processes alone":   {"echo $$; ls /proc | grep -c '^[0-9]'", "1\n"},
		"no network but lo":     {"ls /sys/class/net | tr '\\n' ' '", "lo "},
		"no capabilities":       {"grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status | tr -d '\\t\\n'", "CapEff:0000000000000000CapBnd:0000000000000000NoNewPrivs:1"},
		"a volume":              {"cat /made/for/it/file; (echo x > /made/for/it/new) 2>/dev/null || echo no", "of the hostno\n"},
		"a file":                {"cat /etc/hosts", "of the host"},
		"nothing of the host's": {"ls -A /tmp /run", "/run:\n\n/tmp:\n"},
		"a read-only root":      {"for d in / /tmp /etc /dev/shm; do touch $d/x 2>/dev/null && echo $d; done", "/dev/shm\n"},
		"devices":               {"echo x > /dev/null; head -c 4 /dev/zero | wc -c", "4\n"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := f.spec(c.script)
			spec.Mounts = []volumes.Mount{
				{Source: data, Target: "/made/for/it", ReadOnly: true}, {Source: filepath.Join(data, "file"), Target: "/etc/hosts"},
			}
			out, exit := f.run(spec)
			if name == "its processes alone" {
				// The shell and what it runs.
				out, _, _ = strings.Cut(out, "\n")
				out += "\n"
			}
			if out != c.want || exit.Signal != 0 {
				t.Errorf("got %q, exit %+v; want %q", out, exit, c.want)
			}
		})
	}
	if _, err := os.Stat("/made"); !os.IsNotExist(err) {
		t.Errorf("the host has a place that was made for a container: %v", err)
	}
}

func TestWhatAContainerWritesStaysInIt(t *testing.T) {
	f := newFixture(t)
	spec := f.spec("echo own > /etc/hostname && cat /etc/hostname && echo x > /tmp/y && ls /tmp")
	spec.ReadOnly, spec.User = false, User{Capabilities: []int{unix.CAP_DAC_OVERRIDE}}
	before, err := os.ReadFile("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	if out, exit := f.run(spec); out != "own\ny\n" || exit.Code != 0 {
		t.Errorf("got %q, %+v", out, exit)
	}
	if after, err := os.ReadFile("/etc/hostname"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the host's file is %q, was %q, %v", after, before, err)
	}
}

func TestExitCodesAndSignals(t *testing.T) {
	f := newFixture(t)
	if _, exit := f.run(f.spec("exit 3")); exit.Code != 3 || exit.Signal != 0 {
		t.Errorf("got %+v", exit)
	}
	process, err := f.spawner.StartContainer(context.Background(), f.spec("sleep 60 & sleep 60"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := process.Exit(); exit.Code != 137 || exit.Signal != 9 {
		t.Errorf("got %+v", exit)
	}
}

func TestACommandThatCannotRunIsNamed(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		change func(*Container)
		want   string
	}{
		{func(s *Container) { s.Command = []string{"no-such-program"} }, `"no-such-program": executable file not found in $PATH`},
		{func(s *Container) { s.Command = []string{"/etc/passwd"} }, "permission denied"},
		{func(s *Container) { s.Mounts = []volumes.Mount{{Source: "/no/such", Target: "/x"}} }, "mount at /x"},
	} {
		spec := f.spec("")
		c.change(spec)
		_, err := f.spawner.StartContainer(context.Background(), spec, nil, nil)
		var start *StartError
		if !errors.As(err, &start) || !strings.Contains(start.Cause, c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestAProgramEntersAContainer(t *testing.T) {
	f := newFixture(t)
	process := f.sleeping(t)
	spec := f.spec("")
	command, start := Enter(process.PID, Command{Line: []string{"sh", "-c", "id -G; hostname; tr '\\0' ' ' < /proc/1/cmdline; grep CapBnd /proc/self/status"}, Env: spec.Env, User: spec.User})
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	command.WaitDelay = time.Second
	if _, err := start(); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
	if want := "10001 10002\npod-0\nsleep 60 CapBnd:\t0000000000000000\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestATerminalIsTheContainersOwn(t *testing.T) {
	f := newFixture(t)
	process := f.sleeping(t)
	spec := f.spec("")
	command, start := Enter(process.PID, Command{Line: []string{"sh", "-c", "tty; stty size; read x; echo got $x"}, Env: spec.Env, User: spec.User, Terminal: true})
	terminal, err := start()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	if err := Resize(terminal, 80, 24); err != nil {
		t.Fatal(err)
	}
	if _, err := terminal.WriteString("it\n"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	// The end of the program is an error for who reads its terminal.
	_, _ = out.ReadFrom(terminal)
	if err := command.Wait(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"/dev/pts/0", "got it"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
}

func TestUsersOfSecurityContexts(t *testing.T) {
	pod := &corev1.PodSecurityContext{RunAsUser: ptr.To(int64(1)), RunAsNonRoot: ptr.To(true), FSGroup: ptr.To(int64(5)), SupplementalGroups: []int64{6}}
	user, err := UserOf(pod, &corev1.SecurityContext{
		RunAsUser: ptr.To(int64(2)), AllowPrivilegeEscalation: ptr.To(false),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_BIND_SERVICE"}},
	})
	if err != nil || user.ID != 2 || user.Group != 0 || !user.NoNewPrivileges || len(user.Groups) != 2 ||
		len(user.Capabilities) != 1 || user.Capabilities[0] != unix.CAP_NET_BIND_SERVICE {
		t.Errorf("got %+v, %v", user, err)
	}
	if _, err := UserOf(pod, &corev1.SecurityContext{RunAsUser: ptr.To(int64(0))}); err == nil {
		t.Error("root was let in by runAsNonRoot")
	}
	unknown := &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"FLY"}}}
	if _, err := UserOf(nil, unknown); err == nil || !strings.Contains(err.Error(), "FLY") {
		t.Errorf("got %v", err)
	}
}
