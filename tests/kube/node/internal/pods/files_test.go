package pods

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestHowAPodAsksForNames(t *testing.T) {
	server := netip.MustParseAddr("10.244.1.1")
	host := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(host, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := "nameserver 10.244.1.1\nsearch n.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
	five := "1"
	config := &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.2"}, Options: []corev1.PodDNSConfigOption{{Name: "timeout", Value: &five}}}
	for _, c := range []struct {
		name string
		spec corev1.PodSpec
		want string
	}{
		{"usual", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst}, first},
		{"on the host's network", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, HostNetwork: true}, "nameserver 192.0.2.1\n"},
		{"there, but asked for", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirstWithHostNet, HostNetwork: true}, first},
		{"its own", corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: config}, "nameserver 192.0.2.2\noptions timeout:1\n"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n"}, Spec: c.spec}
		if got, err := resolvConf(pod, server, host); err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestAPodKnowsItsOwnName(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c-0"}, Spec: corev1.PodSpec{
		Subdomain: "c", HostAliases: []corev1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"a", "b"}}},
	}}
	want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.244.1.2\tc-0.c.n.svc.cluster.local\tc-0\n192.0.2.9\ta\tb\n"
	if got := hosts(pod, hostname(pod), netip.MustParseAddr("10.244.1.2")); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
