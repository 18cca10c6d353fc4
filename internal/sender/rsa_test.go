package sender

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// An RSA key so long that signing or verifying with it would take minutes is refused before it is used.
func TestLongRSAKeys(t *testing.T) {
	for _, row := range []struct {
		p, q uint // exponents of two Mersenne primes
		want string
	}{
		{3217, 4423, ""},
		{4253, 4423, "its RSA key has 8676 bits: at most 8192"},
	} {
		cert, key := rsaPair(t, row.p, row.q)
		for what, settings := range map[string]TLS{
			"the client certificate":               {Certificate: cert, Key: key},
			"one of the authorities' certificates": {RootCAs: newAuthority(t).PEM + cert},
		} {
			want := row.want
			if want != "" {
				want = what + ": " + want
			}
			if got := errorText(settings.Check()); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
}

// rsaPair returns a certificate of an RSA key, signed with another one, and the key.
func rsaPair(t *testing.T, p, q uint) (cert, key string) {
	prime := func(n uint) *big.Int { x := new(big.Int).Lsh(big.NewInt(1), n); return x.Sub(x, big.NewInt(1)) }
	less := func(n *big.Int) *big.Int { return new(big.Int).Sub(n, big.NewInt(1)) }
	long := &rsa.PrivateKey{Primes: []*big.Int{prime(p), prime(q)}}
	long.E, long.N = 65537, new(big.Int).Mul(long.Primes[0], long.Primes[1])
	long.D = new(big.Int).ModInverse(big.NewInt(65537), new(big.Int).Mul(less(long.Primes[0]), less(long.Primes[1])))
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &long.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(long)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}
