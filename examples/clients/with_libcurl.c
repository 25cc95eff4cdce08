/* A file of an image to `sigcam serve` by libcurl.
 *
 *     cc -O2 examples/clients/with_libcurl.c -lcurl -o with_libcurl
 *     ./with_libcurl cat.jpg map.png MODEL [http://127.0.0.1:8000]
 *
 * Prints the answer as JSON, with boxes, and writes the map of the most probable class. Ends with 1
 * where something fails, and says what.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct answer {
    char *data;
    size_t length;
};

/* Puts another part behind what came so far. */
static size_t collect(char *part, size_t size, size_t count, void *to)
{
    struct answer *answer = to;
    size_t length = size * count;
    char *grown = realloc(answer->data, answer->length + length + 1);
    if (grown == NULL)
        return 0; /* libcurl ends the transfer */
    memcpy(grown + answer->length, part, length);
    answer->data = grown;
    answer->length += length;
    grown[answer->length] = '\0';
    return length;
}

/* Sends the file as a form; returns 0 where the answer is 200. */
static int post(CURL *curl, const char *address, const char *image, struct answer *answer)
{
    long status = 0;
    curl_mime *form = curl_mime_init(curl);
    curl_mimepart *part = curl_mime_addpart(form);
    curl_mime_name(part, "image");
    CURLcode done = curl_mime_filedata(part, image);
    if (done == CURLE_OK) {
        curl_easy_setopt(curl, CURLOPT_URL, address);
        curl_easy_setopt(curl, CURLOPT_MIMEPOST, form);
        curl_easy_setopt(curl, CURLOPT_TIMEOUT, 60L);
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, collect);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
        done = curl_easy_perform(curl);
    }
    curl_mime_free(form);
    if (done != CURLE_OK) {
        fprintf(stderr, "%s to %s: %s\n", image, address, curl_easy_strerror(done));
        return 1;
    }
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200) {
        fprintf(stderr, "%ld: %s\n", status, answer->data ? answer->data : "");
        return 1;
    }
    return 0;
}

static int save(const char *path, const struct answer *answer)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t written = fwrite(answer->data, 1, answer->length, file);
    if (fclose(file) != 0 || written != answer->length) {
        perror(path);
        return 1;
    }
    return 0;
}

int main(int count, char **words)
{
    if (count < 4) {
        fprintf(stderr, "usage: %s IMAGE OUT MODEL [URL]\n", words[0]);
        return 2;
    }
    const char *url = count > 4 ? words[4] : "http://127.0.0.1:8000";
    struct answer text = {0}, map = {0};
    char address[2048];
    int failed = 1;

    curl_global_init(CURL_GLOBAL_DEFAULT);
    CURL *curl = curl_easy_init();
    char *model = curl_easy_escape(curl, words[3], 0);
    if (curl != NULL && model != NULL) {
        snprintf(address, sizeof address, "%s/explain?top_k=3&model=%s", url, model);
        failed = post(curl, address, words[1], &text);
        if (!failed) {
            puts(text.data);
            snprintf(address, sizeof address, "%s/explain?format=png&model=%s", url, model);
            failed = post(curl, address, words[1], &map) || save(words[2], &map);
        }
    }
    curl_free(model);
    curl_easy_cleanup(curl); /* does nothing without one */
    curl_global_cleanup();
    free(text.data);
    free(map.data);
    return failed;
}
