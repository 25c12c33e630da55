package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"crescendo.dev/kube-node/internal/network"
)

const (
	// connectionsAtOnce bounds what pods can open to the API.
	connectionsAtOnce = 256
	dialDeadline      = 5 * time.Second
)

// apiProxy leads pods to an API server that listens on the host's loopback.
type apiProxy struct {
	listener net.Listener
	server   string
	slots    chan struct{}
}

func listenForAPI(address netip.Addr, config *rest.Config) (*apiProxy, error) {
	where, err := url.Parse(config.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the API: %w", err)
	}
	port := where.Port()
	if port == "" {
		port = "443"
	}
	listener, err := net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
	if err != nil {
		return nil, fmt.Errorf("listen for calls to the API: %w", err)
	}
	return &apiProxy{listener, net.JoinHostPort(where.Hostname(), port), make(chan struct{}, connectionsAtOnce)}, nil
}

// route puts the proxy behind the service "kubernetes".
func (p *apiProxy) route(services []*corev1.Service, routes []network.Route) {
	own := netip.MustParseAddrPort(p.listener.Addr().String())
	for _, service := range services {
		if service.Namespace != corev1.NamespaceDefault || service.Name != "kubernetes" {
			continue
		}
		for i := range routes {
			if routes[i].Service.Addr().String() == service.Spec.ClusterIP {
				routes[i].Endpoints = []netip.AddrPort{own}
			}
		}
	}
}

func (p *apiProxy) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.listener.Close() })
	defer stop()
	for {
		connection, err := p.listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case p.slots <- struct{}{}:
			go func() {
				defer func() { <-p.slots }()
				p.lead(ctx, connection)
			}()
		default:
			connection.Close()
		}
	}
}

func (p *apiProxy) lead(ctx context.Context, pod net.Conn) {
	defer pod.Close()
	server, err := (&net.Dialer{Timeout: dialDeadline}).DialContext(ctx, "tcp", p.server)
	if err != nil {
		// The pod sees that nobody is there.
		return
	}
	defer server.Close()
	done := make(chan struct{}, 2)
	for _, ends := range [][2]net.Conn{{pod, server}, {server, pod}} {
		go func() {
			_, _ = io.Copy(ends[0], ends[1])
			done <- struct{}{}
		}()
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
