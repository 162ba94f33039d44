// SPDX-License-Identifier: Apache-2.0

// Drives the client library that kube-apiserver links: each connection is a tunnel of its own over gRPC on a
// Unix socket, made as kube-apiserver makes it. `cargo xtask peers` builds it; the tests of the tunnel run it.
//
// It makes one HTTP request and prints status and body, or sends bytes to an echo server and compares what
// comes back. Exit code 1: something failed, and stderr says what.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client"
)

var (
	socket  = flag.String("uds", "", "absolute path of the Unix socket of the server's frontend")
	target  = flag.String("target", "", "HOST:PORT behind the agent")
	mode    = flag.String("mode", "http", "http: one request; echo: bytes to an echo server")
	path    = flag.String("path", "/", "with http: the path")
	size    = flag.Int("bytes", 1<<20, "with echo: how many bytes each connection sends")
	tunnels = flag.Int("tunnels", 1, "how many connections, all at once")
	limit   = flag.Duration("timeout", 30*time.Second, "for everything")
)

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	work := request
	if *mode == "echo" {
		work = echo
	}
	failures := make(chan error, *tunnels)
	var all sync.WaitGroup
	for number := range *tunnels {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := work(ctx, number); err != nil {
				failures <- fmt.Errorf("tunnel %d: %w", number, err)
			}
		}()
	}
	all.Wait()
	close(failures)
	failed := false
	for err := range failures {
		fmt.Fprintln(os.Stderr, err)
		failed = true
	}
	if failed {
		os.Exit(1)
	}
}

// dial opens a connection through a tunnel that serves this one connection. The address is the bare path, as
// kube-apiserver gives it: gRPC makes the name of the server from it.
func dial(ctx context.Context) (net.Conn, error) {
	unix := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", *socket)
	}
	tunnel, err := client.CreateSingleUseGrpcTunnelWithContext(
		ctx, context.Background(), *socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(unix), grpc.WithBlock(), grpc.WithReturnConnectionError(),
	)
	if err != nil {
		return nil, fmt.Errorf("creating the tunnel: %w", err)
	}
	conn, err := tunnel.DialContext(ctx, "tcp", *target)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", *target, err)
	}
	return conn, nil
}

func request(ctx context.Context, _ int) error {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	defer transport.CloseIdleConnections()
	asked, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+*target+*path, nil)
	if err != nil {
		return err
	}
	answer, err := transport.RoundTrip(asked)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	fmt.Printf("%s\n%s\n", answer.Status, body)
	return nil
}

func echo(ctx context.Context, number int) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	sent := make([]byte, *size)
	rand.New(rand.NewSource(int64(number))).Read(sent)
	written := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, bytes.NewReader(sent))
		written <- err
	}()
	received := make([]byte, *size)
	if _, err := io.ReadFull(conn, received); err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	if err := <-written; err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	if !bytes.Equal(sent, received) {
		return fmt.Errorf("other bytes came back than were sent")
	}
	if err := conn.Close(); err != nil {
		return fmt.Errorf("closing: %w", err)
	}
	fmt.Printf("echoed %d bytes in %v\n", *size, time.Since(start))
	return nil
}
