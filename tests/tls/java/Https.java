import java.io.FilterInputStream;
import java.io.FilterOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SNIHostName;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * HTTPS of Java's own, both ends, with a count of the encrypted bytes: {@code STORE NAME ASKS}.
 *
 * <p>The store is a PKCS 12 file without a password. Prints its port and serves; once it reads a line
 * it asks itself as often as told, each time on a connection of its own, and with the next line it
 * ends serving. Then it
 * prints what it did, a line for each end: {@code server|client CONNECTIONS READ WRITTEN}; it stays
 * until its input ends.
 */
public final class Https {
    private static final char[] NO_PASSWORD = new char[0];
    private static final byte[] ANSWER = new byte[20_000];

    /** What one end did; what its socket moved is what the kernel moves. */
    private static final class Count {
        final String end;
        final AtomicLong connections = new AtomicLong();
        final AtomicLong read = new AtomicLong();
        final AtomicLong written = new AtomicLong();

        Count(String end) {
            this.end = end;
        }

        void print() {
            System.out.println(end + " " + connections + " " + read + " " + written);
        }
    }

    /** A plain socket that counts. */
    private static final class Counted extends Socket {
        private final Count count;

        Counted(Count count) {
            this.count = count;
        }

        @Override
        public InputStream getInputStream() throws IOException {
            return new FilterInputStream(super.getInputStream()) {
                @Override
                public int read() throws IOException {
                    int value = super.read();
                    count.read.addAndGet(value < 0 ? 0 : 1);
                    return value;
                }

                @Override
                public int read(byte[] data, int offset, int size) throws IOException {
                    int moved = super.read(data, offset, size);
                    count.read.addAndGet(Math.max(moved, 0));
                    return moved;
                }

                @Override
                public long skip(long size) throws IOException { // what comes after a close
                    long moved = super.skip(size);
                    count.read.addAndGet(moved);
                    return moved;
                }
            };
        }

        @Override
        public OutputStream getOutputStream() throws IOException {
            return new FilterOutputStream(super.getOutputStream()) {
                @Override
                public void write(int value) throws IOException {
                    out.write(value);
                    count.written.incrementAndGet();
                }

                @Override
                public void write(byte[] data, int offset, int size) throws IOException {
                    out.write(data, offset, size);
                    count.written.addAndGet(size);
                }
            };
        }
    }

    /** Hands out sockets that count. */
    private static final class Listener extends ServerSocket {
        private final Count count;

        Listener(Count count) throws IOException {
            super(0, 50, InetAddress.getByName("127.0.0.1"));
            this.count = count;
        }

        @Override
        public Socket accept() throws IOException {
            Counted socket = new Counted(count);
            implAccept(socket);
            count.connections.incrementAndGet();
            return socket;
        }
    }

    public static void main(String[] arguments) throws Exception {
        SSLContext context = context(Path.of(arguments[0]));
        Count server = new Count("server");
        Count client = new Count("client");
        try (Listener listener = new Listener(server)) {
            System.out.println(listener.getLocalPort());
            Thread serving = new Thread(() -> serve(listener, context));
            serving.start();
            System.in.read();
            for (int asked = 0; asked < Integer.parseInt(arguments[2]); asked++) {
                ask(context, arguments[1], listener.getLocalPort(), client);
            }
            System.out.println("asked");
            System.in.read();
            listener.close();
            serving.join();
        }
        server.print();
        client.print();
        while (System.in.read() >= 0) {}
    }

    private static SSLContext context(Path path) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (InputStream file = Files.newInputStream(path)) {
            store.load(file, NO_PASSWORD);
        }
        KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
        keys.init(store, NO_PASSWORD);
        KeyStore trusted = KeyStore.getInstance("PKCS12");
        trusted.load(null, null);
        trusted.setCertificateEntry("own", store.getCertificate(store.aliases().nextElement()));
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        return context;
    }

    private static void serve(Listener listener, SSLContext context) {
        while (true) {
            try (Socket plain = listener.accept();
                    SSLSocket socket =
                            (SSLSocket) context.getSocketFactory().createSocket(plain, null, true)) {
                requestFrom(socket.getInputStream());
                String head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ";
                OutputStream out = socket.getOutputStream();
                out.write((head + ANSWER.length + "\r\n\r\n").getBytes());
                out.write(ANSWER);
            } catch (SocketException end) {
                return;
            } catch (IOException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    private static void requestFrom(InputStream in) throws IOException {
        StringBuilder head = new StringBuilder();
        while (head.indexOf("\r\n\r\n") < 0) {
            int value = in.read();
            if (value < 0) {
                throw new IOException("no request");
            }
            head.append((char) value);
        }
    }

    private static void ask(SSLContext context, String name, int port, Count count)
            throws IOException {
        Counted plain = new Counted(count);
        plain.connect(new InetSocketAddress("127.0.0.1", port));
        count.connections.incrementAndGet();
        try (SSLSocket socket =
                (SSLSocket) context.getSocketFactory().createSocket(plain, name, port, true)) {
            SSLParameters parameters = socket.getSSLParameters();
            parameters.setServerNames(List.of(new SNIHostName(name)));
            socket.setSSLParameters(parameters);
            String request = "GET /own HTTP/1.1\r\nHost: " + name + "\r\nConnection: close\r\n\r\n";
            socket.getOutputStream().write(request.getBytes());
            if (socket.getInputStream().readAllBytes().length <= ANSWER.length) {
                throw new IOException("no answer");
            }
        }
    }
}
