package probes

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// answerLimit bounds how much of an answer is read.
const answerLimit = 10 << 10

// Target is the container that is asked.
type Target struct {
	// Address is its pod's.
	Address string
	Ports   []corev1.ContainerPort
	// Run runs a program in it; what it writes is the answer.
	Run func(ctx context.Context, line []string) (string, error)
}

// Ask asks once. An error says why the answer is no.
func Ask(ctx context.Context, probe *corev1.Probe, target Target) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout(probe))
	defer cancel()
	switch {
	case probe.GRPC != nil:
		return askHealth(ctx, probe.GRPC, target)
	default:
		_, err := Do(ctx, &corev1.LifecycleHandler{Exec: probe.Exec, HTTPGet: probe.HTTPGet, TCPSocket: probe.TCPSocket}, target)
		return err
	}
}

// Do does what a probe or a hook names, and gives what came back.
func Do(ctx context.Context, handler *corev1.LifecycleHandler, target Target) (string, error) {
	switch {
	case handler.Exec != nil:
		return target.Run(ctx, handler.Exec.Command)
	case handler.HTTPGet != nil:
		return get(ctx, handler.HTTPGet, target)
	case handler.TCPSocket != nil:
		return "", connect(ctx, handler.TCPSocket, target)
	}
	return "", fmt.Errorf("names nothing that this node can do")
}

func get(ctx context.Context, action *corev1.HTTPGetAction, target Target) (string, error) {
	port, err := Port(action.Port, target.Ports)
	if err != nil {
		return "", err
	}
	host := action.Host
	if host == "" {
		host = target.Address
	}
	where, err := url.Parse(action.Path)
	if err != nil {
		return "", fmt.Errorf("httpGet path: %w", err)
	}
	where.Scheme, where.Host = strings.ToLower(string(action.Scheme)), net.JoinHostPort(host, strconv.Itoa(port))
	if where.Scheme == "" {
		where.Scheme = "http"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("User-Agent", "kube-probe/kube-node")
	for _, header := range action.HTTPHeaders {
		if strings.EqualFold(header.Name, "Host") {
			request.Host = header.Value
		}
		request.Header.Add(header.Name, header.Value)
	}
	// As the kubelet: no certificate is checked, no connection kept.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, answerLimit))
	if err != nil {
		return "", err
	}
	if answer.StatusCode < 200 || answer.StatusCode >= 400 {
		return string(body), fmt.Errorf("HTTP probe failed with statuscode: %d", answer.StatusCode)
	}
	return string(body), nil
}

func connect(ctx context.Context, action *corev1.TCPSocketAction, target Target) error {
	port, err := Port(action.Port, target.Ports)
	if err != nil {
		return err
	}
	host := action.Host
	if host == "" {
		host = target.Address
	}
	connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return connection.Close()
}

func askHealth(ctx context.Context, action *corev1.GRPCAction, target Target) error {
	address := net.JoinHostPort(target.Address, strconv.Itoa(int(action.Port)))
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	request := &grpc_health_v1.HealthCheckRequest{}
	if action.Service != nil {
		request.Service = *action.Service
	}
	answer, err := grpc_health_v1.NewHealthClient(connection).Check(ctx, request)
	if err != nil {
		return err
	}
	if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service unhealthy (responded with %q)", answer.Status)
	}
	return nil
}

// Port is a port by its number or by its name among a container's.
func Port(given intstr.IntOrString, ports []corev1.ContainerPort) (int, error) {
	if given.Type == intstr.Int {
		return given.IntValue(), nil
	}
	for _, port := range ports {
		if port.Name == given.StrVal {
			return int(port.ContainerPort), nil
		}
	}
	if number, err := strconv.Atoi(given.StrVal); err == nil {
		return number, nil
	}
	return 0, fmt.Errorf("the container has no port named %q", given.StrVal)
}
