SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

TOOL     := go tool -modfile=tools/go.mod
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
GOBUILD   = CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

FUZZTIME ?= 30s
BENCH    ?= .
COUNT    ?= 6

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

# The race detector watches everything but SQLite itself, which is C made into Go: it would take most of the time, and find no race of ours.
# Only a package without instances of generics can be left out: the linker takes one of each for all packages.
.PHONY: test
test: ## Run all tests on SQLite and PostgreSQL, with the race detector where there is a C compiler
	@if command -v "$$(go env CC)" >/dev/null; then \
		export CGO_ENABLED=1 RACE='-race -gcflags=modernc.org/sqlite/lib=-race=false'; \
	else \
		echo 'NO RACE DETECTOR: it needs a C compiler, and none was found. Testing without it.'; \
		export CGO_ENABLED=0 RACE=; \
	fi; \
	go run ./internal/pgtest/with $(MAKE) --no-print-directory test-stores

.PHONY: test-stores
test-stores: # the part of test that needs a PostgreSQL to be there
	go test $(RACE) -vet=off -timeout 30m ./... # lint vets
	POSTHORN_TEST_STORE=postgres go test $(RACE) -vet=off -timeout 30m -run 'TestContract|TestCrash|TestIsolation|TestScripts|TestFlowAtTheReceiver|TestGoneAtTheReceiver' ./cmd/posthorn

.PHONY: lint
lint: ## Check formatting, run go vet and golangci-lint
	@echo '== gofmt'
	@files=$$(git ls-files -z '*.go' | xargs -0 gofmt -l); \
	if [ -n "$$files" ]; then echo "not formatted, run gofmt -w on:"; echo "$$files"; exit 1; fi
	@echo '== go vet'
	@go vet ./...
	@echo '== golangci-lint'
	@$(TOOL) golangci-lint run ./...

.PHONY: vuln
vuln: ## Look for known vulnerabilities in what the code calls
	@out=$$($(TOOL) govulncheck ./... 2>&1) && status=0 || status=$$?; \
	echo "$$out"; \
	if [ $$status -ne 0 ] && grep -q 'fetching vulnerabilities' <<<"$$out"; then \
		echo 'NOT CHECKED: the vulnerability database cannot be reached from here.'; \
	else \
		exit $$status; \
	fi

.PHONY: audit
audit: vuln ## Look for known vulnerabilities, and for what is insecure in the code
	@$(TOOL) golangci-lint run --enable-only gosec,bodyclose,noctx,rowserrcheck,sqlclosecheck ./...

.PHONY: build
build: ## Build the static binary bin/posthorn
	$(GOBUILD) -o bin/posthorn ./cmd/posthorn

.PHONY: cross
cross: ## Build for Linux, macOS and Windows, amd64 and arm64, into dist/
	@for p in $(PLATFORMS); do \
		os=$${p%/*}; arch=$${p#*/}; ext=; if [ $$os = windows ]; then ext=.exe; fi; \
		echo "dist/posthorn-$$os-$$arch$$ext"; \
		GOOS=$$os GOARCH=$$arch $(GOBUILD) -o dist/posthorn-$$os-$$arch$$ext ./cmd/posthorn; \
	done

# When the time is over, Go 1.26 sometimes takes its own deadline for a failure, having found nothing (golang/go#75804): then it is run again.
.PHONY: fuzz
fuzz: ## Run each fuzz test for FUZZTIME (30s), five at a time
	@git grep -qE '^func Fuzz' -- '*_test.go' # there are some
	@git grep -oE '^func Fuzz\w+' -- '*_test.go' | sed -E 's|^(.*/)?[^/]+:func |./\1 |' | xargs -P 5 -L 1 bash -c \
		'for run in 1 2 3; do \
			out=$$(go test -run "^$$" -fuzz "^$$1\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x -parallel 1 "$$0" 2>&1) && status=0 || status=255; \
			echo "== $$1 in $$0"; tail -n 25 <<<"$$out"; \
			grep -q "^    context deadline exceeded" <<<"$$out" && ! grep -q "Failing input" <<<"$$out" || break; \
		done; exit $$status'

.PHONY: bench
bench: ## Run the benchmarks BENCH (all) COUNT (6) times, into bench.txt
	go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./... | tee bench.txt
	@echo "compare two: $(TOOL) benchstat old.txt bench.txt"

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf bin dist bench.txt coverage.* *.coverprofile *.prof *.test
