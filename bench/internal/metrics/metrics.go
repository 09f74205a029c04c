// Package metrics reads what a program says of itself at /metrics.
package metrics

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Samples are the values of a /metrics page, by name and labels as they stand there.
type Samples map[string]float64

// Read reads the metrics of a program that serves them at address, host:port.
func Read(ctx context.Context, address string) (Samples, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	req.Close = true // a connection kept would be one of its descriptors and goroutines
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("read the metrics at %s: %w", address, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read the metrics at %s: %s", address, resp.Status)
	}
	out := Samples{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			out[line[:i]] = v
		}
	}
	return out, lines.Err()
}

// Sum adds up a metric over its labels.
func (s Samples) Sum(name string) float64 {
	total := s[name]
	for k, v := range s {
		if strings.HasPrefix(k, name+"{") {
			total += v
		}
	}
	return total
}
