package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// elsewhere is a process with a network of its own.
func elsewhere(t *testing.T) int {
	t.Helper()
	command := exec.Command("sleep", "60")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := command.Process.Kill(); err != nil {
			t.Error(err)
		}
		// It was killed.
		_ = command.Wait()
	})
	return command.Process.Pid
}

// in acts on a thread in a process's network.
func in(t *testing.T, process int, action func() error) error {
	t.Helper()
	handle, err := netns.GetFromPid(process)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(handle); err != nil {
			done <- err
			return
		}
		done <- action()
	}()
	return <-done
}

func ping(t *testing.T, process int, address netip.AddrPort) error {
	t.Helper()
	return in(t, process, func() error {
		connection, err := net.DialTimeout("tcp", address.String(), 2*time.Second)
		if err != nil {
			return err
		}
		return connection.Close()
	})
}

func TestPodsReachEachOtherAndServices(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("networks need root")
	}
	const name = "kube-node-test"
	prefix := netip.MustParsePrefix("10.249.0.0/16")
	bridge, err := OpenBridge(name, prefix, 0)
	if err != nil {
		t.Fatal(err)
	}
	second, err := OpenBridge(name, prefix, 0)
	if err != nil {
		t.Fatal(err)
	}
	if bridge.Block() == second.Block() {
		t.Errorf("two nodes have the part %d", bridge.Block())
	}
	client, server := elsewhere(t), elsewhere(t)
	from, err := bridge.Take()
	if err != nil {
		t.Fatal(err)
	}
	to, err := second.Take()
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{bridge.Connect(client, from), second.Connect(server, to)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var listener net.Listener
	if err := in(t, server, func() (err error) { listener, err = net.Listen("tcp", ":7070"); return err }); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	pod, service := netip.AddrPortFrom(to, 7070), netip.MustParseAddrPort("10.96.0.9:80")
	if err := ping(t, client, pod); err != nil {
		t.Errorf("a pod of another node: %v", err)
	}
	route := Route{Service: service, Protocol: corev1.ProtocolTCP}
	for i := range 2 {
		if err := Apply(client, []Route{route}); err != nil {
			t.Fatal(err)
		}
		if err := ping(t, client, service); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a service with nothing behind it: %v", err)
		}
		route.Endpoints = []netip.AddrPort{pod, pod}
		if err := Apply(client, []Route{route}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := ping(t, client, service); err != nil {
				t.Errorf("a service, time %d: %v", i, err)
			}
		}
		route.Endpoints = nil
	}
	for _, b := range []*Bridge{bridge, second} {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := netlink.LinkByName(name); err == nil {
		t.Error("the bridge is left after the last node")
	}
}
