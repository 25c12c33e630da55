package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	corev1 "k8s.io/api/core/v1"

	"crescendo.dev/kube-node/internal/pods"
)

// kubelet is the server behind kubectl logs, exec and port-forward.
type kubelet struct {
	listener net.Listener
	server   *http.Server
	port     int
}

const (
	headerDeadline = 10 * time.Second
	streamIdle     = 4 * time.Hour
)

func (n *running) listenForKubelet(address netip.Addr) (*kubelet, error) {
	certificate, err := selfSigned(address)
	if err != nil {
		return nil, fmt.Errorf("make the kubelet's certificate: %w", err)
	}
	listener, err := net.Listen("tcp", netip.AddrPortFrom(address, 10250).String())
	if err != nil {
		return nil, fmt.Errorf("listen for the kubelet's API: %w", err)
	}
	handler := api.PodHandler(api.PodHandlerConfig{
		RunInContainer: n.exec, PortForward: n.manager.Forward, GetContainerLogs: n.logs,
		GetPods:               func(context.Context) ([]*corev1.Pod, error) { return n.manager.Pods(), nil },
		GetPodsFromKubernetes: func(context.Context) ([]*corev1.Pod, error) { return n.manager.Pods(), nil },
		StreamIdleTimeout:     streamIdle, StreamCreationTimeout: 30 * time.Second,
	}, true)
	server := &http.Server{
		Handler: fromThisHost(address, handler), ReadHeaderTimeout: headerDeadline,
		// HTTP/2 cannot be upgraded to the streams of exec and port-forward.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		// Streams need a connection of their own.
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12},
	}
	return &kubelet{listener, server, 10250}, nil
}

// fromThisHost refuses pods: whoever may call can run programs in every container.
func fromThisHost(address netip.Addr, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || from.Addr().Unmap() != address {
			http.Error(w, "only programs of this host are let in", http.StatusForbidden)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

func (k *kubelet) run(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- k.server.ServeTLS(k.listener, "", "") }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return k.server.Close()
	}
}

func selfSigned(address netip.Addr) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-node"}, IPAddresses: []net.IP{address.AsSlice()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// known turns an error into one that the server answers with the right status.
func known(err error) error {
	if errors.Is(err, pods.ErrNotFound) {
		return errdefs.AsNotFound(err)
	}
	return errdefs.AsInvalidInput(err)
}

func (n *running) exec(ctx context.Context, namespace, pod, container string, line []string, attach api.AttachIO) error {
	streams := pods.Streams{Terminal: attach.TTY()}
	// A nil stream in an interface is not nil.
	if in := attach.Stdin(); in != nil {
		streams.In = in
	}
	if out := attach.Stdout(); out != nil {
		streams.Out = out
	}
	if err := attach.Stderr(); err != nil {
		streams.Err = err
	}
	if attach.TTY() {
		sizes := make(chan pods.Size)
		streams.Sizes = sizes
		go func() {
			for {
				select {
				case size := <-attach.Resize():
					select {
					case sizes <- pods.Size{Width: size.Width, Height: size.Height}:
					case <-ctx.Done():
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return n.manager.Exec(ctx, namespace, pod, container, line, streams)
}

func (n *running) logs(ctx context.Context, namespace, pod, container string, given api.ContainerLogOpts) (io.ReadCloser, error) {
	options := pods.ReadOptions{Tail: -1, Since: given.SinceTime, Timestamps: given.Timestamps, Limit: int64(given.LimitBytes)}
	if given.Tail > 0 {
		options.Tail = given.Tail
	}
	if given.SinceSeconds > 0 {
		options.Since = time.Now().Add(-time.Duration(given.SinceSeconds) * time.Second)
	}
	read, write := io.Pipe()
	first := &firstWrite{to: write, begun: make(chan struct{})}
	failed := make(chan error, 1)
	go func() {
		err := n.manager.Logs(ctx, namespace, pod, container, given.Previous, given.Follow, options, first)
		failed <- err
		write.CloseWithError(err)
	}()
	// An error before the first line becomes the answer's status.
	select {
	case err := <-failed:
		if err != nil {
			return nil, known(err)
		}
	case <-first.begun:
	case <-time.After(200 * time.Millisecond):
	}
	return read, nil
}

// firstWrite tells when something is written for the first time.
type firstWrite struct {
	to    io.Writer
	begun chan struct{}
	told  bool
}

func (f *firstWrite) Write(text []byte) (int, error) {
	if !f.told {
		f.told = true
		close(f.begun)
	}
	return f.to.Write(text)
}
