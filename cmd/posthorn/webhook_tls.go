package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
)

// webhookTLS is the flags that say what a webhook's connections have of their own.
type webhookTLS struct {
	TLSMinVersion string `name:"tls-min-version" env:"-" enum:",1.2,1.3" default:"" placeholder:"VERSION" help:"Least version of TLS: 1.2 or 1.3. It can't go below the server's."`
	TLSCAFile     string `name:"tls-ca-file" env:"-" placeholder:"FILE" help:"Certificates in PEM of the authorities to trust, instead of those that the server trusts."`
	TLSClientCert string `name:"tls-client-cert" env:"-" placeholder:"FILE" help:"Certificate in PEM, with those between it and its root, for a receiver that asks for one."`
	TLSClientKey  string `name:"tls-client-key" env:"-" placeholder:"FILE" help:"The key of that certificate in PEM. The server keeps it encrypted."`
}

// tlsBody is the settings as the API takes them.
type tlsBody map[string]string

// body reads the files. Without any flag it is nil.
func (f *webhookTLS) body() (tlsBody, error) {
	var body tlsBody
	set := func(name, value string) {
		if body == nil {
			body = tlsBody{}
		}
		body[name] = value
	}
	if f.TLSMinVersion != "" {
		set("minVersion", f.TLSMinVersion)
	}
	for _, file := range []struct{ flag, path, name string }{
		{"tls-ca-file", f.TLSCAFile, "rootCAs"}, {"tls-client-cert", f.TLSClientCert, "certificate"}, {"tls-client-key", f.TLSClientKey, "key"},
	} {
		if file.path == "" {
			continue
		}
		content, err := os.ReadFile(file.path)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", file.flag, err)
		}
		set(file.name, string(content))
	}
	return body, nil
}

// subjects says whose the certificates in PEM are.
func subjects(text string) string {
	var names []string
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return strings.Join(names, "; ")
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			names = append(names, cert.Subject.String())
		}
	}
}
