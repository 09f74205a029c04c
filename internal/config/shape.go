package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// shape walks a decoded document beside the Go type that it is meant for, adds every unknown key and
// wrong type to found, and takes what does not fit out of the maps. encoding/json stops at the first
// wrong type and knows no paths; an operator wants the whole list.
func shape(path string, doc any, into any, found *problems) {
	walk(path, doc, reflect.TypeOf(into).Elem(), found)
}

// walk reports whether doc fits t; a misfit was added to found.
func walk(path string, doc any, t reflect.Type, found *problems) bool {
	if doc == nil { // "key:" with nothing after it: the default stands
		return true
	}
	if u, ok := reflect.New(t).Interface().(json.Unmarshaler); ok {
		raw, _ := json.Marshal(doc)
		if err := u.UnmarshalJSON(raw); err != nil {
			found.add(path, "%v", err)
			return false
		}
		return true
	}
	switch t.Kind() {
	case reflect.Struct:
		m, ok := doc.(map[string]any)
		if !ok {
			return misfit(path, "an object", doc, found)
		}
		walkStruct(path, m, t, found)
		return true
	case reflect.Map:
		return walkMap(path, doc, t, found)
	case reflect.Slice:
		return walkSlice(path, doc, t, found)
	case reflect.String:
		if _, ok := doc.(string); !ok {
			return misfit(path, "a string", doc, found)
		}
	case reflect.Bool:
		if _, ok := doc.(bool); !ok {
			return misfit(path, "true or false", doc, found)
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		n, ok := doc.(json.Number)
		if !ok {
			return misfit(path, "a whole number", doc, found)
		}
		if _, err := strconv.ParseInt(n.String(), 10, t.Bits()); err != nil {
			return misfit(path, "a whole number", doc, found)
		}
	case reflect.Float64:
		n, ok := doc.(json.Number)
		if !ok {
			return misfit(path, "a number", doc, found)
		}
		if _, err := n.Float64(); err != nil {
			return misfit(path, "a number", doc, found)
		}
	}
	return true
}

func walkStruct(path string, m map[string]any, t reflect.Type, found *problems) {
	fields := map[string]reflect.Type{}
	collectFields(t, fields)
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		at := join(path, k)
		ft, ok := fields[k]
		if !ok {
			found.add(at, "unknown key%s", suggest(k, fields))
			delete(m, k)
			continue
		}
		if !walk(at, m[k], ft, found) || m[k] == nil {
			delete(m, k)
		}
	}
}

func walkMap(path string, doc any, t reflect.Type, found *problems) bool {
	m, ok := doc.(map[string]any)
	if !ok {
		return misfit(path, "an object", doc, found)
	}
	for k, v := range m {
		if !walk(join(path, k), v, t.Elem(), found) {
			delete(m, k)
		}
	}
	return true
}

func walkSlice(path string, doc any, t reflect.Type, found *problems) bool {
	s, ok := doc.([]any)
	if !ok {
		return misfit(path, "a list", doc, found)
	}
	fits := true
	for i, v := range s {
		if !walk(fmt.Sprintf("%s[%d]", path, i), v, t.Elem(), found) {
			fits = false
		}
	}
	return fits
}

func misfit(path, want string, got any, found *problems) bool {
	raw, _ := json.Marshal(got)
	if len(raw) > 60 {
		raw = append(raw[:60:60], "..."...)
	}
	found.add(path, "want %s, got %s", want, raw)
	return false
}

// collectFields maps a struct's JSON names to their types, embedded structs flattened.
func collectFields(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			collectFields(f.Type, into)
		case name != "" && name != "-":
			into[name] = f.Type
		}
	}
}

// suggest names the known key that differs from k only in case, dashes or underscores.
func suggest(k string, fields map[string]reflect.Type) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s))
	}
	for f := range fields {
		if plain(f) == plain(k) {
			return fmt.Sprintf(" (did you mean %q?)", f)
		}
	}
	return ""
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
