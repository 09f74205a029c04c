package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// samples are the values of a /metrics page, by name and labels as they stand there.
type samples map[string]float64

// scrape reads a broker's metrics.
func scrape(ctx context.Context, address string) (samples, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	req.Close = true // a connection kept would be one of the broker's descriptors and goroutines
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("read the broker's metrics: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read the broker's metrics at %s: %s", address, resp.Status)
	}
	out := samples{}
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

// sum adds up a metric over its labels.
func (s samples) sum(name string) float64 {
	total := s[name]
	for k, v := range s {
		if strings.HasPrefix(k, name+"{") {
			total += v
		}
	}
	return total
}
