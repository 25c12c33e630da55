package pods

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// writeOwnFiles writes the files by which a pod finds names.
func (w *worker) writeOwnFiles(pod *corev1.Pod, address netip.Addr) error {
	resolv, err := resolvConf(pod, w.node.Address(), "/etc/resolv.conf")
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"hosts": hosts(pod, w.hostname, address), "hostname": w.hostname + "\n", "resolv.conf": resolv,
	} {
		if err := os.WriteFile(w.file(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func hosts(pod *corev1.Pod, hostname string, address netip.Addr) string {
	var out strings.Builder
	out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	names := hostname
	if pod.Spec.Subdomain != "" {
		names = fmt.Sprintf("%s.%s.%s.svc.cluster.local\t%s", hostname, pod.Spec.Subdomain, pod.Namespace, hostname)
	}
	fmt.Fprintf(&out, "%s\t%s\n", address, names)
	for _, alias := range pod.Spec.HostAliases {
		fmt.Fprintf(&out, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
	}
	return out.String()
}

// resolvConf is how a pod asks for names, by its dnsPolicy.
func resolvConf(pod *corev1.Pod, server netip.Addr, host string) (string, error) {
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	var servers, searches, options []string
	switch policy {
	case corev1.DNSDefault:
		text, err := os.ReadFile(host)
		if err != nil {
			return "", fmt.Errorf("read the host's name servers: %w", err)
		}
		return string(text), nil
	case corev1.DNSNone:
	default:
		servers = []string{server.String()}
		searches = []string{pod.Namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"}
		options = []string{"ndots:5"}
	}
	if config := pod.Spec.DNSConfig; config != nil {
		servers = append(servers, config.Nameservers...)
		searches = append(searches, config.Searches...)
		for _, option := range config.Options {
			text := option.Name
			if option.Value != nil {
				text += ":" + *option.Value
			}
			options = append(options, text)
		}
	}
	var out strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", server)
	}
	if len(searches) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(searches, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(options, " "))
	}
	return out.String(), nil
}
